// A real OpenID Connect provider for tests. Its one argument is JSON: {port, keys, clients}.
import { Provider } from 'oidc-provider';

const { port, keys, clients } = JSON.parse(process.argv[2]);
const issuer = `http://127.0.0.1:${port}`;

const provider = new Provider(issuer, {
  jwks: { keys },
  clients: Object.keys(clients).map((id) => ({
    client_id: id,
    client_secret: 'secret-of-a-test',
    grant_types: ['client_credentials'],
    redirect_uris: [],
    response_types: [],
  })),
  scopes: ['openid', 'offline_access'],
  // What the provider knows of whoever asks goes into the access token.
  extraTokenClaims: (_ctx, token) => clients[token.clientId],
  features: {
    devInteractions: { enabled: false },
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
