// A real OpenID Connect provider for tests. Its one argument is JSON: {port, keys, clients, apps, people}.
import { Provider } from 'oidc-provider';

const { port, keys, clients, apps = {}, people = {} } = JSON.parse(process.argv[2]);
const issuer = `http://127.0.0.1:${port}`;

// Programs get tokens by their secret; apps are what people sign in to by browser.
const programs = Object.keys(clients).map((id) => ({
  client_id: id,
  client_secret: 'secret-of-a-test',
  grant_types: ['client_credentials'],
  redirect_uris: [],
  response_types: [],
}));
const signedInTo = Object.entries(apps).map(([id, app]) => ({
  client_id: id,
  grant_types: ['authorization_code'],
  response_types: ['code'],
  ...app,
}));
const known = [...new Set(Object.values(people).flatMap((claims) => Object.keys(claims)))];

const provider = new Provider(issuer, {
  jwks: { keys },
  clients: [...programs, ...signedInTo],
  scopes: ['openid', 'email', 'offline_access'],
  // Whatever is known of a person goes into the ID token.
  claims: { openid: ['sub', ...known.filter((name) => !name.startsWith('email'))], email: ['email', 'email_verified'] },
  conformIdTokenClaims: false,
  findAccount: (_ctx, id) => ({ accountId: id, claims: () => ({ sub: id, ...people[id] }) }),
  // What the provider knows of whoever asks goes into the access token.
  extraTokenClaims: (_ctx, token) => clients[token.clientId],
  features: {
    devInteractions: { enabled: true },
    clientCredentials: { enabled: true },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => 'https://exports.example',
      useGrantedResource: () => true,
      getResourceServerInfo: (_ctx, resource) => {
        const algorithm = new URL(resource).searchParams.get('alg') ?? 'RS256';
        return {
          scope: 'exports',
          audience: resource.split('?')[0],
          accessTokenFormat: 'jwt',
          accessTokenTTL: 300,
          jwt: { sign: { alg: algorithm } },
        };
      },
    },
  },
});
provider.on('server_error', (_ctx, error) => console.error(error));

const server = provider.listen(port, '127.0.0.1', () => console.log('listening'));
process.on('SIGTERM', () => server.close(() => process.exit(0)));
